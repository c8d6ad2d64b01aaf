//! Methods that follow a teacher's score.

pub mod diff_instruct;
pub mod sid;
