use crate::compare::*;
use crate::models::*;
#[test]
fn debug_case() {
    let body = std::env::var("BODY").unwrap();
    let layers = [("conv", &conv2d(4, 4)), ("bn", &batch_norm2d(4)), ("relu", &relu()), ("fc", &linear(4, 4))];
    let case = Case::new(model(&layers, &body), &[&[1, 4, 4, 4]]);
    let case = if std::env::var("DYN").is_ok() { case.dynamic(QINT8) } else { case };
    let observed = case.theirs().unwrap();
    observed.call("forward", &[random(&[1, 4, 4, 4], 100)]).unwrap();
    let theirs =
        jitquant_oracle::quantize(&observed.save_bytes().unwrap(), "forward", std::env::var("DYN").is_ok()).unwrap();
    println!("THEIRS {}", crate::same::loaded(&theirs).graph("forward").unwrap());
    println!("OURS {}", case.check_end_to_end().graph("forward").unwrap());
    case.check_any();
}
