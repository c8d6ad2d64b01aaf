//! Prints results as tables, charts and pages. It neither changes nor judges them.

pub mod chart;
pub mod curves;
pub mod explain;
pub mod figures;
pub mod notes;
pub mod overview;
pub mod page;
pub mod studies;
pub mod summary;
pub mod table;
pub mod tables;
pub mod verdicts;
