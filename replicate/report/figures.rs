//! The paper's figures, cut from the grids that the runs have left. Every panel
//! shows the images of the same latents.

use crate::data::Images;
use crate::data::grid::GRID;
use crate::data::grid::{png_grid, png_strip};
use crate::experiment::{FULL_INITIALIZATION, TABLE2, all_rows};
use crate::report::page::Figure;
use crate::report::table::{metric_names, stand_in};
use std::io::Cursor;

/// What one finished cell offers for the figures.
pub struct Panel {
    pub row: String,
    /// As the tables call the row.
    pub label: String,
    pub seed: u64,
    /// The images seen and the PNG of a grid, the initialisation's first; none
    /// for the teacher, which is only sampled.
    pub grids: Vec<(u64, Vec<u8>)>,
    /// The PNG of the final samples.
    pub samples: Vec<u8>,
    pub fd: Option<f64>,
    pub recall: Option<f64>,
    pub collapsed: bool,
}

const SINGLE_LEVEL: &str = "init-single";
/// The panels of Figure 1 are squares of so many columns.
const SMALL: usize = 4;
const ZOOM: usize = 4;
/// Latents followed through a strip.
const FOLLOWED: usize = 20;

/// Every id that a figure or a strip can have.
pub fn figure_ids() -> impl Iterator<Item = String> {
    let numbers = ["1a", "1b", "1c", "2", "3", "4", "5"].into_iter();
    numbers.map(|number| format!("figure{number}")).chain(all_rows().map(|cell| format!("strip-{}", cell.id)))
}

/// Figures 1a to 1c and 2 to 5 of the paper, as far as their rows are there.
pub fn figures(panels: &[Panel], scale: &str) -> Vec<Figure> {
    let find = |row: &str| panels.iter().find(|panel| panel.row == row);
    let (full, single, worst) = (find(FULL_INITIALIZATION.id), find(SINGLE_LEVEL), most_collapsed(panels));
    let initial = |panel: &Panel| Some(panel.grids.first()?.1.clone());
    let last = |panel: &Panel| Some(panel.samples.clone());
    let full_start = "One-step samples of the multi-level DSM initialisation, before the second stage.";
    let single_start = "One-step samples of the single-level DSM initialisation, before the second stage.";
    let trained = match full.and_then(|panel| panel.fd) {
        Some(fd) => format!("Samples of DiJS after the second stage, {} {fd:.2}.", metric_names(scale).0),
        None => "Samples of DiJS after the second stage.".to_string(),
    };
    let collapsed = worst.map_or(String::new(), |panel| collapsed_text(panel, rows_there(panels).count()));
    type Look<'a> = &'a dyn Fn(&Panel) -> Option<Vec<u8>>;
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
        let images = tiles(&look(panel)?)?;
        let (columns, shown) = match number.starts_with('1') {
            true => (SMALL, choose(&images, &(0..SMALL * SMALL).collect::<Vec<_>>())),
            false => (GRID.0, images),
        };
        let caption = format!(
            "Figure {number}. {text} {}, seed {}; every panel shows the same latents.",
            setting(scale),
            panel.seed
        );
        figure(&format!("figure{number}"), caption, png_grid(&shown, columns, ZOOM))
    });
    made.collect()
}

/// One strip for each trained row: a row of images for each moment, the
/// initialisation on top, a column for each latent.
pub fn strips(panels: &[Panel], scale: &str) -> Vec<Figure> {
    let made = panels.iter().filter_map(|panel| {
        let moments: Vec<Images> = panel
            .grids
            .iter()
            .filter_map(|(_, png)| Some(choose(&tiles(png)?, &(0..FOLLOWED).collect::<Vec<_>>())))
            .collect();
        let (first, last) = (panel.grids.first()?.0, panel.grids.last()?.0);
        let caption = format!(
            "{}: {FOLLOWED} latents from {first} images of training (top) to {last} (bottom). {}, seed {}.",
            panel.label,
            setting(scale),
            panel.seed
        );
        let rows: Vec<&Images> = moments.iter().collect();
        figure(&format!("strip-{}", panel.row), caption, png_strip(&rows, 2))
    });
    made.collect()
}

fn setting(scale: &str) -> String {
    format!("Scale {scale}{}", stand_in(scale))
}

/// Those of Table 2, in its order.
fn rows_there(panels: &[Panel]) -> impl Iterator<Item = &Panel> {
    TABLE2.iter().filter_map(|cell| panels.iter().find(|panel| panel.row == cell.id))
}

/// The first collapsed row of Table 2, else the one with the least recall.
fn most_collapsed(panels: &[Panel]) -> Option<&Panel> {
    let rows = || rows_there(panels);
    let recall = |panel: &&Panel| panel.recall.unwrap_or(f64::INFINITY);
    rows().find(|panel| panel.collapsed).or_else(|| rows().min_by(|a, b| recall(a).total_cmp(&recall(b))))
}

/// `there` rows of Table 2 were run.
fn collapsed_text(panel: &Panel, there: usize) -> String {
    let recall = panel.recall.map_or(String::new(), |recall| format!(" (recall {recall:.2})"));
    match panel.collapsed {
        true => format!("Collapsed samples: {} after the second stage{recall}.", panel.label),
        false => format!(
            "None is collapsed of the rows of Table 2 that were run ({there} of {}); these are the samples of \
             the one that covers least, {}{recall}.",
            TABLE2.len(),
            panel.label
        ),
    }
}

fn figure(id: &str, caption: String, png: Vec<u8>) -> Option<Figure> {
    let (width, height) = png::Decoder::new(Cursor::new(&png)).read_info().ok()?.info().size();
    Some(Figure { id: id.to_string(), caption, png, width, height })
}

/// Of `indices` those that there are.
fn choose(images: &Images, indices: &[usize]) -> Images {
    let there = indices.iter().filter(|i| **i < images.len());
    let pixels = there.flat_map(|i| images.image(*i).iter().copied()).collect();
    Images { channels: images.channels, size: images.size, pixels, labels: Vec::new() }
}

/// The images of a grid that [`png_grid`] wrote with the columns and the zoom of
/// [`GRID`]; `None` for anything else.
fn tiles(png: &[u8]) -> Option<Images> {
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
