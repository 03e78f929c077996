//! Buffers and attributes that the model writes: they begin as the float model has them, and go on as its do.

use crate::models::*;

#[test]
fn a_buffer_that_is_written() {
    assert_same(
        "def forward(self, x: Tensor, y: Tensor):\n    self.n.add_(x)\n    self.n[0] = 1.0\n    return self.layer(self.n) + self.n\n",
    );
}

#[test]
fn a_buffer_that_counts() {
    assert_same("def forward(self, x: Tensor, y: Tensor):\n    self.n += 1.0\n    return self.layer(x) + self.n\n");
}

#[test]
fn a_buffer_that_is_bound_anew() {
    assert_same(
        "def forward(self, x: Tensor, y: Tensor):\n    h = self.layer(self.h) + x\n    self.h = h\n    return self.layer(h)\n",
    );
}

#[test]
fn a_buffer_that_is_bound_anew_and_written_then() {
    assert_same(
        "def forward(self, x: Tensor, y: Tensor):\n    h = self.layer(x)\n    self.h = h\n    h.add_(1.0)\n    return self.h + self.n\n",
    );
}

#[test]
fn a_buffer_that_one_branch_writes() {
    assert_same(
        "def forward(self, x: Tensor, y: Tensor):
    if bool(x.sum() > 0.0):
        self.n.add_(self.layer(x))
    else:
        self.h = y
    return self.layer(self.n) + self.h
",
    );
}

#[test]
fn what_calibration_wrote_is_forgotten() {
    let model =
        model("def forward(self, x: Tensor, y: Tensor):\n    self.n += 1.0\n    return self.layer(x) + self.n\n");
    let before = model.attribute("n").unwrap().as_tensor().unwrap().to_f32_vec().unwrap();
    let mut prepared = jitquant::Quantizer::static_ptq().prepare(&model).unwrap();
    for seed in 0..5 {
        prepared.calibrate(&[whole(seed), whole(seed + 9)]).unwrap();
    }
    let int8 = prepared.convert().unwrap();
    assert_eq!(int8.module.attribute("n").unwrap().as_tensor().unwrap().to_f32_vec().unwrap(), before);
    assert_eq!(model.attribute("n").unwrap().as_tensor().unwrap().to_f32_vec().unwrap(), before);
}
