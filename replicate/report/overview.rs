//! The first screen: a contact sheet of every row, and how far each lies from the data.

use crate::report::dots::dot_plot;
use crate::report::page::{Page, Picture, Sampled, image};
use crate::report::tables::metric_names;
use maud::{Markup, html};

/// More rows than these are drawn smaller.
const FEW: usize = 12;

/// Real images, teacher and every row, and how far each lies from the data.
pub(crate) fn overview(page: &Page) -> Markup {
    let fd = metric_names(&page.scale).0;
    let pictured = page.rows.iter().filter_map(|row| Some((row, row.picture.as_ref()?)));
    let tiles: Vec<(&Sampled, &Picture)> = pictured.collect();
    let plot = dot_plot(&page.rows, fd);
    if tiles.is_empty() && page.real.is_none() && plot.is_none() {
        return html! {};
    }
    let size = if tiles.len() > FEW { "sheet many" } else { "sheet few" };
    html! {
        div.overview {
            figure.contact {
                div class=(size) {
                    @if let Some(real) = &page.real {
                        div.tile { (image(real, "Training images")) b { "Training images" } span { "real" } }
                    }
                    @for (row, picture) in &tiles {
                        div.tile {
                            (image(picture, &format!("Samples of {}", row.label)))
                            b { (row.label) }
                            span { (distance(fd, &row.seeds)) (state(&row.state)) }
                        }
                    }
                }
                figcaption { "The same latents in every row." }
            }
            @if let Some(plot) = plot {
                figure.plot {
                    (plot)
                    figcaption {
                        "Dots: this run's seeds. Bar: where golden expects one more seed, with its mean. "
                        "Right: the paper's FID, of other images and features."
                    }
                }
            }
        }
    }
}

/// The mean over the seeds; the plot beside it shows their spread.
fn distance(fd: &str, seeds: &[(u64, f64)]) -> String {
    let mean = seeds.iter().map(|seed| seed.1).sum::<f64>() / seeds.len() as f64;
    if seeds.is_empty() { String::new() } else { format!("{fd} {mean:.2}") }
}

fn state(state: &str) -> Markup {
    html! { @if !state.is_empty() && state != "healthy" { " " i { (state) } } }
}
