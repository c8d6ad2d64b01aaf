//! File formats that are read and written.

pub mod npz;
pub mod safetensors;
pub mod torch;
pub mod unzip;
