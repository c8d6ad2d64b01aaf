//! The command line, and the parts of the program that only it needs.

pub mod bench;
pub mod cli;
pub mod collect;
pub mod commands;
pub mod machine;
pub mod process;
pub mod score;
pub mod selftest;
