//! Results as tables, charts and pages. Nothing here changes one.

pub mod chart;
pub mod explain;
pub mod figures;
pub mod findings;
pub mod page;
pub mod table;
