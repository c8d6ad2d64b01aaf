//! Lists the files of a folder of images.

use crate::error::{Error, Result};
use crate::store::formats::{LeftOut, is_hidden};
use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Calls `visit` with the path in `root` and the type of every file below it, folder by folder and sorted
/// within each. Follows links. Counts hidden files and folders in `left_out` and skips them.
///
/// # Errors
/// `Malformed` for a link that leads back to a folder that it is in; `Missing` for a link that leads
/// nowhere; those of `visit`.
pub fn walk(
    root: &Path,
    left_out: &mut LeftOut,
    visit: &mut dyn FnMut(PathBuf, FileType, &mut LeftOut) -> Result<()>,
) -> Result<()> {
    below(root, Path::new(""), &mut Vec::new(), left_out, visit)
}

/// Walks through `directory` of `root`. `within` has the real paths of the directories that lead to it.
fn below(
    root: &Path,
    directory: &Path,
    within: &mut Vec<PathBuf>,
    left_out: &mut LeftOut,
    visit: &mut dyn FnMut(PathBuf, FileType, &mut LeftOut) -> Result<()>,
) -> Result<()> {
    let path = root.join(directory);
    let real = fs::canonicalize(&path).map_err(Error::io("list", &path))?;
    if within.contains(&real) {
        return Err(circle(&path));
    }
    within.push(real);
    let names: std::io::Result<Vec<_>> =
        fs::read_dir(&path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    let mut names = names.map_err(Error::io("list", &path))?;
    // What is said must not depend on the file system's order.
    names.sort();
    for name in names {
        let (inner, path) = (directory.join(&name), path.join(&name));
        if is_hidden(&inner) {
            left_out.hidden(&inner);
            continue;
        }
        // Follows the link.
        let kind = match fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let remedy = "restore what it points to, or remove the link";
                return Err(Error::missing(path, "links are followed", remedy));
            }
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(circle(&path)),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        match kind.is_dir() {
            true => below(root, &inner, within, left_out, visit)?,
            false => visit(inner, kind, left_out)?,
        }
    }
    within.pop();
    Ok(())
}

fn circle(path: &Path) -> Error {
    let found = "a link that leads back to a folder that it is in";
    Error::malformed(path, "folders that do not hold themselves", found, "remove the link")
}
