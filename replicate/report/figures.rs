//! Pictures of stored samples: the paper's figures, a strip for each run, and the overview's panels.
//! All pictures show images of the same latents.

use crate::data::Images;
use crate::data::grid::{GRID, png_grid, png_strip};
use crate::judge::paper::Row2;
use crate::report::page::{Figure, Picture};
use crate::report::tables::{UNLEARNED, metric_names, stand_in};
use crate::text::thousands;
use std::io::Cursor;

/// Images and scores of a finished cell, for the pictures.
pub struct Panel {
    pub row: String,
    /// Label of the row in the tables.
    pub label: String,
    pub seed: u64,
    /// Numbers of training images, each with the samples at that moment. The initialisation comes
    /// first. Empty for a row that is only sampled.
    pub grids: Vec<(u64, Images)>,
    /// Final samples.
    pub samples: Option<Images>,
    pub fd: Option<f64>,
    pub recall: Option<f64>,
    /// State as the tables print it.
    pub state: String,
}

/// Columns and rows of the panels of Figure 1.
const SMALL: usize = 4;
const ZOOM: usize = 4;
/// Number of latents in a strip.
const FOLLOWED: usize = 20;
/// Images of a row in the overview.
pub const SHOWN: usize = 8;

/// Makes the paper's Figures 1a to 1c and 2 to 5, as far as their rows were run. `second` is the
/// paper's Table 2, whose last row is the full initialisation.
pub fn figures(panels: &[Panel], second: &[Row2], scale: &str) -> Vec<Figure> {
    let find = |row: &Row2| panels.iter().find(|panel| panel.row == row.cell);
    let full = second.last().and_then(find);
    let single = second.iter().find(|row| row.initialization.starts_with("Single-level")).and_then(find);
    let worst = least_covering(panels, second);
    let initial = |panel: &Panel| panel.grids.first().map(|grid| grid.1.clone());
    let last = |panel: &Panel| panel.samples.clone();
    let full_start = "One-step samples of the multi-level DSM initialisation, before the second stage.";
    let single_start = "One-step samples of the single-level DSM initialisation, before the second stage.";
    let trained = full.map_or(String::new(), |panel| {
        let fd = panel.fd.map_or(String::new(), |fd| format!(", {} {fd:.2}", metric_names(scale).0));
        format!("Samples of {} after the second stage{fd}.", panel.label)
    });
    let collapsed = worst.map_or(String::new(), |panel| worst_text(panel, panels, second));
    type Look<'a> = &'a dyn Fn(&Panel) -> Option<Images>;
    let wanted: [(&str, Option<&Panel>, Look, &str); 7] = [
        ("1a", full, &initial, full_start),
        ("1b", single, &initial, single_start),
        ("1c", worst, &last, &collapsed),
        ("2", full, &initial, full_start),
        ("3", single, &initial, single_start),
        ("4", worst, &last, &collapsed),
        ("5", full, &last, &trained),
    ];
    let made = wanted.into_iter().filter_map(|(number, panel, look, text)| {
        let panel = panel?;
        let images = look(panel)?;
        let (columns, shown) = match number.starts_with('1') {
            true => (SMALL, first(&images, SMALL * SMALL)),
            false => (GRID.0, images),
        };
        let caption = format!("Figure {number}. {text} {}, seed {}.", setting(scale), panel.seed);
        let picture = Picture::of(png_grid(&shown, columns, ZOOM))?;
        Some(Figure { id: format!("figure{number}"), caption, picture, marks: Vec::new() })
    });
    made.collect()
}

/// Makes one strip for each trained row: a row of images for each moment, with the initialisation on
/// top, and a column for each latent.
pub fn strips(panels: &[Panel], scale: &str) -> Vec<Figure> {
    let made = panels.iter().filter(|panel| !panel.grids.is_empty()).filter_map(|panel| {
        let moments: Vec<Images> = panel.grids.iter().map(|(_, images)| first(images, FOLLOWED)).collect();
        let caption = format!(
            "{}: {FOLLOWED} latents, one row for each number of images of training. {}, seed {}.",
            panel.label,
            setting(scale),
            panel.seed
        );
        Some(Figure {
            id: format!("strip-{}", panel.row),
            caption,
            picture: Picture::of(png_strip(&moments.iter().collect::<Vec<_>>(), 2))?,
            marks: panel.grids.iter().map(|(images, _)| thousands(*images)).collect(),
        })
    });
    made.collect()
}

/// Makes the overview's picture of some images.
pub fn tile(images: &Images) -> Option<Picture> {
    Picture::of(png_grid(&first(images, SHOWN), SHOWN / 2, (48 / images.size).max(1)))
}

fn setting(scale: &str) -> String {
    format!("Scale {scale}{}", stand_in(scale))
}

/// Returns the panels of Table 2, in its order.
fn there<'a>(panels: &'a [Panel], second: &[Row2]) -> impl Iterator<Item = &'a Panel> {
    second.iter().filter_map(|row| panels.iter().find(|panel| panel.row == row.cell))
}

/// Returns the first collapsed row of Table 2, or else the one with the least recall.
fn least_covering<'a>(panels: &'a [Panel], second: &[Row2]) -> Option<&'a Panel> {
    let rows = || there(panels, second);
    let recall = |panel: &&Panel| panel.recall.unwrap_or(f64::INFINITY);
    let least = || rows().min_by(|a, b| recall(a).total_cmp(&recall(b)));
    rows().find(|panel| panel.state == "collapsed").or_else(least)
}

fn worst_text(panel: &Panel, panels: &[Panel], second: &[Row2]) -> String {
    let recall = panel.recall.map_or(String::new(), |recall| format!(" (recall {recall:.2})"));
    let Panel { label, state, .. } = panel;
    match state.as_str() {
        "collapsed" => format!("Collapsed samples: {label} after the second stage{recall}."),
        _ => format!(
            "None of the {} rows of Table 2 that were run (of {}) is collapsed; these are the samples of the one that \
             covers least, {label}{recall}{}.",
            there(panels, second).count(),
            second.len(),
            if state == UNLEARNED { ", which has not learned" } else { "" }
        ),
    }
}

/// Returns the first `n` images, or all if there are fewer.
fn first(images: &Images, n: usize) -> Images {
    images.chosen(&(0..n.min(images.len())).collect::<Vec<_>>())
}

/// Reads the images of a grid that [`png_grid`] wrote with the columns and the zoom of [`GRID`];
/// `None` for any other file.
pub fn tiles(png: &[u8]) -> Option<Images> {
    let mut reader = png::Decoder::new(Cursor::new(png)).read_info().ok()?;
    let mut rgb = vec![0; reader.output_buffer_size()?];
    let info = reader.next_frame(&mut rgb).ok()?;
    let (columns, zoom) = GRID;
    let (width, height) = (info.width as usize, info.height as usize);
    let pitch = width.checked_sub(1)? / columns;
    let size = pitch.checked_sub(1)? / zoom;
    let whole = size > 0 && width == columns * pitch + 1 && pitch == size * zoom + 1 && height % pitch == 1;
    if !whole || info.color_type != png::ColorType::Rgb {
        return None;
    }
    let mut pixels = Vec::new();
    for tile in 0..height / pitch * columns {
        let (top, left) = (tile / columns * pitch + 1, tile % columns * pitch + 1);
        for channel in 0..3 {
            for y in 0..size {
                let row = (top + y * zoom) * width + left;
                pixels.extend((0..size).map(|x| rgb[(row + x * zoom) * 3 + channel]));
            }
        }
    }
    Some(Images { channels: 3, size, pixels, labels: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_reads_back_as_the_images_that_it_was_made_of() {
        let (size, n) = (5, 2 * GRID.0);
        let pixels: Vec<u8> = (0..n * 3 * size * size).map(|i| (i * 37 % 251) as u8).collect();
        let images = Images { channels: 3, size, pixels, labels: Vec::new() };
        let png = png_grid(&images, GRID.0, GRID.1);
        assert_eq!(tiles(&png), Some(images.clone()));
        assert_eq!(tiles(&png_grid(&images, 4, 1)), None, "another layout");
        assert_eq!(tiles(&png[..png.len() / 2]), None, "half a file");
    }
}
