//! What watches tensors while a model is calibrated.
