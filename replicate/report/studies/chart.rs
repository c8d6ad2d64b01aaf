//! Plots Fréchet distance and recall of a study, with one line for each value.

use super::Study;
use crate::judge::golden::values as seeds_of;
use crate::report::chart::{Axis, PITCH, Range, Span, TOP_LINE, dots, line_at, round};
use crate::report::tables::{Measured, metric_names};
use maud::{Markup, html};

const WIDTH: f64 = 640.0;
/// Left and right end of the two panels.
const PANELS: [(f64, f64); 2] = [(300.0, 455.0), (475.0, 630.0)];

/// Draws the plot, in which dots are seeds; `None` if no distance is finite.
pub fn values(study: &Study, measured: Measured) -> Option<Markup> {
    let parts = study.done(measured.scores, measured.scale);
    let of = |metric: &str| -> Vec<Vec<f64>> {
        let seeds = |cell: &str| seeds_of(measured.scores, cell, measured.scale, metric).into_values();
        parts.iter().map(|part| seeds(&part.cell).filter(|x| x.is_finite()).collect()).collect()
    };
    let (fds, recalls) = (of("fd"), of("recall"));
    let (first, all) = (fds.iter().flatten().next(), fds.iter().flatten().copied());
    first?;
    let (fd, recall) = (Range::Fitted.axis(all), Axis::linear(0.0, 1.0));
    let bottom = TOP_LINE + PITCH * parts.len() as f64;
    let name = metric_names(measured.scale).0;
    let names = [if fd.log { format!("{name}, logarithmic") } else { name.into() }, "Recall".into()];
    let several = study.rows().count() > 1;
    let spans = [fd, recall].into_iter().zip(PANELS).map(|(axis, ends)| Span { axis, ends });
    let panels = spans.zip([&fds, &recalls]).zip(names);
    Some(html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (bottom + 22.0) } role="img"
            aria-label={ (name) " and recall of each value of " (study.id) } {
            @for (i, part) in parts.iter().enumerate() {
                text class="tick y" x=(PANELS[0].0 - 8.0) y=(round(line_at(i) + 3.5)) {
                    @if several { (part.row) ": " } (part.value)
                }
            }
            @for ((span, all), name) in panels {
                text.name x=(span.ends.0) y="12" { (name) }
                (span.ticks(bottom))
                @for (i, seeds) in all.iter().enumerate() {
                    (span.grid(line_at(i)))
                    g.s0 { path.spots d=(dots(&span.row(seeds, line_at(i)))) {} }
                }
            }
        }
    })
}
