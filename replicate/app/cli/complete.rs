//! The command line as shells complete it, and its manual pages.

use super::Cli;
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory};
use clap_mangen::Man;
use std::path::Path;

/// Returns the command line with the values of `--scale`, of `--sampler` and of the arguments that
/// take `targets`. It is for completions alone: the command line that is parsed takes any text there,
/// and its errors name what is near.
pub fn completed(scales: &[&'static str], rows: &[&'static str], targets: &[&'static str]) -> Command {
    let with = |arg: Arg, values: PossibleValuesParser| arg.default_value(None::<&str>).value_parser(values);
    Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_id().as_str() {
            "scale" => with(arg, scales.into()),
            "sampler" => with(arg, rows.into()),
            "targets" => with(arg, targets.into()),
            _ => arg,
        })
    })
}

/// Writes a manual page for each command into `dir`.
///
/// # Errors
/// Those of the files.
pub fn manual(dir: &Path) -> std::io::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    for page in command.get_subcommands().chain([&command]) {
        // Without it the foot of a page has the command's name and no version.
        let source = concat!("replicate ", env!("CARGO_PKG_VERSION"));
        Man::new(page.clone()).source(source).generate_to(dir)?;
    }
    Ok(())
}
