//! The first screen: a contact sheet of every row, and how far each lies from the data. Seeds
//! are dots, golden's interval is a bar; the paper's numbers have a panel of their own, since
//! they are of other images and features.

use crate::judge::paper::Fid;
use crate::report::chart::{Axis, Range, dots, round, short};
use crate::report::page::{Page, Picture, Sampled, image};
use crate::report::tables::metric_names;
use maud::{Markup, html};

/// More rows than these are drawn smaller.
const FEW: usize = 12;

const WIDTH: f64 = 440.0;
const TOP: f64 = 22.0;
const PITCH: f64 = 17.0;
/// Left and right end of our panel, and of the paper's.
const OURS: (f64, f64) = (132.0, 338.0);
const PAPERS: (f64, f64) = (358.0, 432.0);

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
                        "Dots: this run's seeds. Bar: where golden expects one more seed, with its mean. "
                        "Right: the paper's FID"
                        @if fd != "FID" { ", of other images and features: " (fd) " does not compare with it" }
                        "."
                    }
                }
            }
        }
    }
}

/// The mean over the seeds; the plot beside it shows their spread.
fn distance(fd: &str, seeds: &[(u64, f64)]) -> Markup {
    let mean = seeds.iter().map(|seed| seed.1).sum::<f64>() / seeds.len() as f64;
    html! { @if !seeds.is_empty() { abbr { (fd) } (format!(" {mean:.2}")) } }
}

/// The plot as an `svg` element, or `None` where nothing can be drawn. `name` is what our
/// panel measures.
fn dot_plot(rows: &[Sampled], name: &str) -> Option<Markup> {
    let ours = rows.iter().flat_map(|row| {
        let golden = row.golden.map(|(_, mean, high)| [mean, high]);
        row.seeds.iter().map(|seed| seed.1).chain(golden.into_iter().flatten())
    });
    let ours: Vec<f64> = ours.filter(|x| x.is_finite()).collect();
    if ours.is_empty() {
        return None;
    }
    let axis = Range::Fitted.axis(ours.into_iter());
    let printed = rows.iter().filter_map(|row| match row.paper {
        Some(Fid::Value(fid)) => Some(fid),
        _ => None,
    });
    let papers = Axis::linear(0.0, printed.fold(0.0, f64::max));
    let bottom = TOP + PITCH * rows.len() as f64;
    let at = |i: usize| TOP + PITCH * (i as f64 + 0.5);
    let title = if axis.log { format!("{name}, logarithmic") } else { name.to_string() };
    let spots = |row: &Sampled, y: f64| -> Vec<Option<(f64, f64)>> {
        row.seeds.iter().map(|(_, x)| Some((place(&axis, OURS, *x)?, y))).collect()
    };
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
            (ticks(&axis, OURS, bottom))
            (ticks(&papers, PAPERS, bottom))
            @for (i, row) in rows.iter().enumerate() {
                text class="tick y" x=(OURS.0 - 8.0) y=(round(at(i) + 3.5)) { (row.label) }
                path.grid d={ "M" (OURS.0) " " (round(at(i))) "H" (OURS.1) } {}
                path.grid d={ "M" (PAPERS.0) " " (round(at(i))) "H" (PAPERS.1) } {}
                g.s0 {
                    title { (told(row)) }
                    @if let Some((low, high, mean)) = row.golden.and_then(|bar| ends(&axis, bar)) {
                        path.bar d={ "M" (round(low)) " " (round(at(i))) "H" (round(high)) } {}
                        path.mean d={ "M" (round(mean)) " " (round(at(i) - 4.0)) "v8" } {}
                    }
                    path.spots d=(dots(&spots(row, at(i)))) {}
                }
                @match row.paper {
                    Some(Fid::Value(fid)) => @if let Some(x) = place(&papers, PAPERS, fid) {
                        g.s7 { path.spots d={ "M" (round(x)) " " (round(at(i))) "h0" } {} }
                    },
                    Some(Fid::Collapsed) => text class="tick papers" x=(PAPERS.0 + 3.0) y=(round(at(i) + 3.5)) { "collapsed" },
                    None => {},
                }
            }
        }
    })
}

fn place(axis: &Axis, (left, right): (f64, f64), value: f64) -> Option<f64> {
    Some(left + (right - left) * axis.share(value)?)
}

/// Both ends of a bar and its mean. An end that the axis has no place for lies at its edge.
fn ends(axis: &Axis, (low, mean, high): (f64, f64, f64)) -> Option<(f64, f64, f64)> {
    let mean = place(axis, OURS, mean)?;
    Some((place(axis, OURS, low).unwrap_or(OURS.0), place(axis, OURS, high).unwrap_or(OURS.1), mean))
}

fn ticks(axis: &Axis, (left, right): (f64, f64), bottom: f64) -> Markup {
    html! {
        path.axis d={ "M" (left) " " (round(bottom)) "H" (right) } {}
        @for tick in axis.ticks() {
            @if let Some(x) = place(axis, (left, right), tick) {
                path.axis d={ "M" (round(x)) " " (round(bottom)) "v4" } {}
                text class="tick x" x=(round(x)) y=(round(bottom + 15.0)) { (short(tick)) }
            }
        }
    }
}
