//! Fréchet distance and recall over the values of a study, one line for each value.

use super::Study;
use crate::judge::golden::values as seeds_of;
use crate::report::chart::{Axis, Range, dots, round, short};
use crate::report::tables::{Measured, metric_names};
use maud::{Markup, html};

const WIDTH: f64 = 640.0;
const TOP: f64 = 22.0;
const PITCH: f64 = 17.0;
/// Left and right end of the two panels.
const PANELS: [(f64, f64); 2] = [(300.0, 455.0), (475.0, 630.0)];

/// Dots are seeds. `None` where nothing can be drawn.
pub fn values(study: &Study, measured: Measured) -> Option<Markup> {
    let parts = study.done(measured.scores, measured.scale);
    let of = |metric: &str| -> Vec<Vec<f64>> {
        let seeds = |cell: &str| seeds_of(measured.scores, cell, measured.scale, metric).into_values();
        parts.iter().map(|part| seeds(&part.cell).filter(|x| x.is_finite()).collect()).collect()
    };
    let (fds, recalls) = (of("fd"), of("recall"));
    let (first, all) = (fds.iter().flatten().next(), fds.iter().flatten().copied());
    first?;
    let axes = [Range::Fitted.axis(all), Axis::linear(0.0, 1.0)];
    let bottom = TOP + PITCH * parts.len() as f64;
    let at = |i: usize| TOP + PITCH * (i as f64 + 0.5);
    let name = metric_names(measured.scale).0;
    let names = [if axes[0].log { format!("{name}, logarithmic") } else { name.into() }, "Recall".into()];
    let several = study.rows().count() > 1;
    let panels = axes.iter().zip(PANELS).zip([&fds, &recalls]).zip(names);
    Some(html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (bottom + 22.0) } role="img"
            aria-label={ (name) " and recall of each value of " (study.id) } {
            @for (i, part) in parts.iter().enumerate() {
                text class="tick y" x=(PANELS[0].0 - 8.0) y=(round(at(i) + 3.5)) {
                    @if several { (part.row) ": " } (part.value)
                }
            }
            @for (((axis, (left, right)), all), name) in panels {
                @let place = |x: f64| Some(left + (right - left) * axis.share(x)?);
                text.name x=(left) y="12" { (name) }
                path.axis d={ "M" (left) " " (round(bottom)) "H" (right) } {}
                @for tick in axis.ticks() {
                    @if let Some(x) = place(tick) {
                        path.axis d={ "M" (round(x)) " " (round(bottom)) "v4" } {}
                        text class="tick x" x=(round(x)) y=(round(bottom + 15.0)) { (short(tick)) }
                    }
                }
                @for (i, seeds) in all.iter().enumerate() {
                    path.grid d={ "M" (left) " " (round(at(i))) "H" (right) } {}
                    g.s0 { path.spots d=(dots(&seeds.iter().map(|x| Some((place(*x)?, at(i)))).collect::<Vec<_>>())) {} }
                }
            }
        }
    })
}
