//! Experiments: the rows of both tables, and the recipe of every scale.

pub mod plan;
pub mod recipe;
pub mod run;
pub mod studies;

pub use self::recipe::Recipe;
pub use crate::method::{
    ABLATIONS, Data, FULL_INITIALIZATION, Initialization, Row, TABLE1, TABLE2, all_rows,
};
pub use crate::settings::Scale;
