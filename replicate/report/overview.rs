//! The first screen of the page: a contact sheet of every row, and a plot of its distance from the
//! data. Seeds are dots, and golden's interval is a bar. The paper's numbers have a panel of their
//! own, because they belong to other images and features.

use crate::judge::paper::Fid;
use crate::report::chart::{Axis, PITCH, Range, Span, TOP_LINE, dots, line_at, round};
use crate::report::tables::metric_names;
use crate::train::watch::png_size;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};

/// Most rows with large tiles; more rows get small ones.
const FEW: usize = 12;

const WIDTH: f64 = 440.0;
/// Left and right end of the panel of our values.
const OURS: (f64, f64) = (132.0, 338.0);
/// Left and right end of the panel of the paper's values.
const PAPERS: (f64, f64) = (358.0, 432.0);

/// A row of the overview.
#[derive(Default)]
pub struct Sampled {
    pub label: String,
    /// The Fréchet distance of each seed.
    pub seeds: Vec<(u64, f64)>,
    /// Golden's interval for one more seed: low end, mean, high end.
    pub golden: Option<(f64, f64, f64)>,
    pub paper: Option<Fid>,
    /// State as the tables print it; empty if the row was not run.
    pub state: String,
    /// Eight samples, of the same latents in every row; `None` if the row was not run.
    pub picture: Option<Picture>,
}

impl Sampled {
    /// True if the row is healthy on all seeds, or was not run.
    fn healthy(&self) -> bool {
        self.state.is_empty() || self.state == "healthy"
    }
}

/// A PNG, which the page enlarges without smoothing.
#[derive(Clone)]
pub struct Picture {
    pub png: Vec<u8>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl Picture {
    /// Makes a picture; `None` if `png` is not a PNG.
    pub fn of(png: Vec<u8>) -> Option<Picture> {
        let (width, height) = png_size(&png)?;
        Some(Picture { png, width, height })
    }
}

/// Makes the contact sheet with the real images, the teacher and every row, and the dot plot.
pub(super) fn overview(scale: &str, real: Option<&Picture>, rows: &[Sampled]) -> Markup {
    let fd = metric_names(scale).0;
    let pictured = rows.iter().filter_map(|row| Some((row, row.picture.as_ref()?)));
    let tiles: Vec<(&Sampled, &Picture)> = pictured.collect();
    let plot = dot_plot(rows, fd);
    if tiles.is_empty() && real.is_none() && plot.is_none() {
        return html! {};
    }
    let size = if tiles.len() > FEW { "sheet many" } else { "sheet few" };
    html! {
        div.overview {
            figure.contact {
                div class=(size) {
                    @if let Some(real) = real {
                        div.tile { (image(real, "Training images")) b { "Training images" } span { "real" } }
                    }
                    @for (row, picture) in &tiles {
                        div.tile {
                            (image(picture, &format!("Samples of {}", row.label)))
                            b { (row.label) }
                            span.bad[!row.healthy()] {
                                (distance(fd, &row.seeds))
                                @if !row.healthy() { " " i { (row.state) } }
                            }
                        }
                    }
                }
                figcaption {
                    "The same latents in every row."
                    @if tiles.iter().any(|(row, _)| !row.healthy()) { " Red: not healthy." }
                }
            }
            @if let Some(plot) = plot {
                figure.plot {
                    (plot)
                    figcaption {
                        "Dots: this run's seeds. "
                        @if rows.iter().any(|row| row.golden.is_some()) {
                            "Bar: where golden expects one more seed, with its mean. "
                        }
                        "Right: the paper's FID"
                        @if fd != "FID" { ", of other images and features: " (fd) " does not compare with it" }
                        "."
                    }
                }
            }
        }
    }
}

/// Formats the mean over the seeds; the plot shows their spread.
fn distance(fd: &str, seeds: &[(u64, f64)]) -> Markup {
    let mean = seeds.iter().map(|seed| seed.1).sum::<f64>() / seeds.len() as f64;
    html! { @if !seeds.is_empty() { abbr { (fd) } (format!(" {mean:.2}")) } }
}

/// Draws the plot as an `svg` element; `None` if no value is finite. `name` is the metric of our
/// panel.
fn dot_plot(rows: &[Sampled], name: &str) -> Option<Markup> {
    let ours = rows.iter().flat_map(|row| {
        let golden = row.golden.map(|(_, mean, high)| [mean, high]);
        row.seeds.iter().map(|seed| seed.1).chain(golden.into_iter().flatten())
    });
    let ours: Vec<f64> = ours.filter(|x| x.is_finite()).collect();
    if ours.is_empty() {
        return None;
    }
    let ours = Span { axis: Range::Fitted.axis(ours.into_iter()), ends: OURS };
    let printed = rows.iter().filter_map(|row| match row.paper {
        Some(Fid::Value(fid)) => Some(fid),
        _ => None,
    });
    let papers = Span { axis: Axis::linear(0.0, printed.fold(0.0, f64::max)), ends: PAPERS };
    let bottom = TOP_LINE + PITCH * rows.len() as f64;
    let title = if ours.axis.log { format!("{name}, logarithmic") } else { name.to_string() };
    let told = |row: &Sampled| {
        let seeds: Vec<String> = row.seeds.iter().map(|(seed, x)| format!("seed {seed}: {x:.2}")).collect();
        let golden = row.golden.map(|(low, mean, high)| format!("golden {mean:.2}, {low:.2} to {high:.2}"));
        let all: Vec<String> = seeds.into_iter().chain(golden).collect();
        format!("{}: {}", row.label, all.join("; "))
    };
    Some(html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (bottom + 22.0) } role="img"
            aria-label={ (title) " of each row, and the paper's FID beside it" } {
            text.name x=(OURS.0) y="12" { (title) }
            text.name.papers x=(PAPERS.0) y="12" { "paper's FID" }
            (ours.ticks(bottom))
            (papers.ticks(bottom))
            @for (row, y) in rows.iter().zip((0..).map(line_at)) {
                text class="tick y" x=(OURS.0 - 8.0) y=(round(y + 3.5)) { (row.label) }
                (ours.grid(y))
                (papers.grid(y))
                g.s0 {
                    title { (told(row)) }
                    @if let Some((low, high, mean)) = row.golden.and_then(|bar| ends(&ours, bar)) {
                        path.bar d={ "M" (round(low)) " " (round(y)) "H" (round(high)) } {}
                        path.mean d={ "M" (round(mean)) " " (round(y - 4.0)) "v8" } {}
                    }
                    path.spots d=(dots(&ours.row(&row.seeds.iter().map(|seed| seed.1).collect::<Vec<_>>(), y))) {}
                }
                @match row.paper {
                    Some(Fid::Value(fid)) => @if let Some(x) = papers.place(fid) {
                        g.s7 { path.spots d={ "M" (round(x)) " " (round(y)) "h0" } {} }
                    },
                    Some(Fid::Collapsed) => text class="tick papers" x=(PAPERS.0 + 3.0) y=(round(y + 3.5)) { "collapsed" },
                    None => {},
                }
            }
        }
    })
}

/// Returns the coordinates of both ends of a bar and of its mean. An end outside the axis lies at
/// its edge.
fn ends(span: &Span, (low, mean, high): (f64, f64, f64)) -> Option<(f64, f64, f64)> {
    let mean = span.place(mean)?;
    Some((span.place(low).unwrap_or(OURS.0), span.place(high).unwrap_or(OURS.1), mean))
}

pub(super) fn image(picture: &Picture, alt: &str) -> Markup {
    let Picture { png, width, height } = picture;
    html! {
        img src={ "data:image/png;base64," (STANDARD.encode(png)) } alt=(alt) width=(width) height=(height);
    }
}
