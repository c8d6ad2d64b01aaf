//! The drawn data set of scales `smoke` and `mini`: ten legible digits (the target), and 100 invented
//! characters (the source classes of Table 2's "other data" rows).
//!
//! Every image is a pure function of split, class, index and size. It uses only `libm` and exactly
//! rounded operations, so the bytes are the same on every platform.

use std::f32::consts::{PI, TAU};
use std::ops::Range;

use rayon::prelude::*;

use super::Images;
use crate::rng::{Draws, Stream};

/// The digits 0-9.
pub const TARGET_CLASSES: Range<usize> = 0..10;
/// The invented characters, disjoint from the digits.
pub const SOURCE_CLASSES: Range<usize> = 10..110;

const CHANNELS: usize = 3;
/// Version of the drawing, which is part of its random streams' names. Any change of a pixel needs a
/// new one.
pub const VERSION: &str = "glyphs-v1";

/// x points right and y down; the image is [-1, 1] x [-1, 1].
type Point = [f32; 2];
type Colour = [f32; 3];
/// A chain of quadratic Bezier curves: end, control point, end, control point, end …
type Stroke<'a> = &'a [Point];

/// Draws `per_class` RGB images of size x size for each of `classes`: the first image of every class,
/// then the second of every class, and so on.
///
/// `split` ("train", "reference", "heldout") selects the images, but the classes look the same in
/// every split. Image `k` of a class depends neither on `per_class` nor on the other classes.
///
/// # Panics
/// If a class is above 109.
pub fn images(size: usize, classes: Range<usize>, per_class: usize, split: &str) -> Images {
    assert!(classes.end <= SOURCE_CLASSES.end, "glyph classes are 0..{}", SOURCE_CLASSES.end);
    let glyphs: Vec<Glyph> = classes.clone().map(Glyph::of_class).collect();
    let streams: Vec<Stream> =
        classes.clone().map(|class| Stream::new(VERSION, &format!("{split} {class}"))).collect();
    let mut pixels = vec![0; glyphs.len() * per_class * CHANNELS * size * size];
    pixels.par_chunks_mut(CHANNELS * size * size).enumerate().for_each(|(i, image)| {
        let (class, index) = (i % glyphs.len(), i / glyphs.len());
        glyphs[class].draw(&mut streams[class].at(index as u64), size, image);
    });
    let labels = (0..per_class).flat_map(|_| classes.clone()).map(|class| class as u32).collect();
    Images { channels: CHANNELS, size, pixels, labels }
}

/// Common properties of the images of a class.
enum Glyph {
    /// The forms of a digit; colour and texture vary freely.
    Digit(&'static [&'static [Stroke<'static>]]),
    /// Random strokes, with a colour and a texture of the class.
    Invented { strokes: Vec<Vec<Point>>, look: Look },
}

impl Glyph {
    fn of_class(class: usize) -> Glyph {
        if let Some(forms) = DIGITS.get(class) {
            return Glyph::Digit(forms);
        }
        let mut draws = Stream::new(VERSION, "class").at(class as u64);
        let count = 2 + draws.below(2);
        let mut point = || [between(&mut draws, -1.0, 1.0), between(&mut draws, -1.0, 1.0)];
        let mut strokes: Vec<Vec<Point>> = (0..count).map(|_| vec![point(), point(), point()]).collect();
        // Stretches them to the bounding box of the digits.
        let [x, y] = extent(&flatten(&strokes));
        for point in strokes.iter_mut().flatten() {
            *point = [
                0.44 * (2.0 * (point[0] - x[0]) / (x[1] - x[0]) - 1.0),
                0.7 * (2.0 * (point[1] - y[0]) / (y[1] - y[0]) - 1.0),
            ];
        }
        Glyph::Invented { strokes, look: Look::draw(&mut draws) }
    }

    /// Draws one image into `out`, channels x size x size.
    fn draw(&self, draws: &mut Draws, size: usize, out: &mut [u8]) {
        let (mut strokes, look) = match self {
            Glyph::Digit(forms) => {
                let form = forms[draws.below(forms.len())];
                (form.iter().map(|stroke| stroke.to_vec()).collect(), Look::draw(draws))
            }
            Glyph::Invented { strokes, look } => (strokes.clone(), look.clone()),
        };
        let look = look.varied(draws);
        deform(&mut strokes, draws);
        let mut segments = flatten(&strokes);
        shift(&mut segments, draws);
        let pixel = 2.0 / size as f32;
        let half_width = between(draws, 0.11, 0.2).max(0.55 * pixel);
        let mut grain = vec![0.0; out.len()];
        draws.fill_normal(&mut grain);

        let ink = look.ink.rgb();
        let ground = look.ground.map(Paint::rgb);
        let (sin, cos) = libm::sincosf(look.angle);
        for row in 0..size {
            for column in 0..size {
                let [x, y] = [column, row].map(|i| (i as f32 + 0.5) * pixel - 1.0);
                let across = [x * cos + y * sin, y * cos - x * sin];
                let weave = look.texture.at(across.map(|u| u * look.frequency + look.phase));
                let cover =
                    ((half_width - distance(&segments, [x, y])) / (EDGE * pixel) + 0.5).clamp(0.0, 1.0);
                for channel in 0..CHANNELS {
                    let under = mix(ground[0][channel], ground[1][channel], weave);
                    let to = (channel * size + row) * size + column;
                    // `as u8` clips to 0..=255.
                    out[to] = (mix(under, ink[channel], cover) * 255.0 + GRAIN * grain[to] + 0.5) as u8;
                }
            }
        }
    }
}

/// Width of a stroke's soft edge, in pixels.
const EDGE: f32 = 1.3;
/// Standard deviation of the pixel noise, in grey levels.
const GRAIN: f32 = 1.5;

/// Colours and texture. The luma of ink and ground differ by a gap, so the character is legible with
/// any hues.
#[derive(Clone)]
struct Look {
    ink: Paint,
    /// The two colours of the texture.
    ground: [Paint; 2],
    texture: Texture,
    /// Radians.
    angle: f32,
    /// Cycles per half image.
    frequency: f32,
    /// Cycles.
    phase: f32,
}

impl Look {
    fn draw(draws: &mut Draws) -> Look {
        let (ink_side, ground_side) = if draws.below(2) == 0 { (LIGHT, DARK) } else { (DARK, LIGHT) };
        let hue = draws.uniform();
        let ground_hue = hue + between(draws, 0.25, 0.75);
        let second_hue = ground_hue + between(draws, -0.2, 0.2);
        Look {
            ink: Paint::draw(hue, ink_side, draws),
            ground: [ground_hue, second_hue].map(|hue| Paint::draw(hue, ground_side, draws)),
            texture: [Texture::Plain, Texture::Stripes, Texture::Checker, Texture::Gradient][draws.below(4)],
            angle: PI * draws.uniform(),
            frequency: between(draws, 0.6, 1.4),
            phase: draws.uniform(),
        }
    }

    /// Varies the look for one image.
    fn varied(&self, draws: &mut Draws) -> Look {
        Look {
            ink: self.ink.varied(draws),
            ground: self.ground.map(|paint| paint.varied(draws)),
            angle: self.angle + 0.1 * draws.normal(),
            phase: self.phase + 0.1 * draws.normal(),
            ..*self
        }
    }
}

#[derive(Clone, Copy)]
enum Texture {
    Plain,
    Stripes,
    Checker,
    Gradient,
}

impl Texture {
    /// Returns the texture's value in [0, 1]; `cycles` are along and across its direction.
    fn at(self, cycles: Point) -> f32 {
        let wave = |cycles: f32| libm::sinf(TAU * cycles);
        match self {
            Texture::Plain => 0.0,
            Texture::Stripes => 0.5 + 0.5 * wave(cycles[0]),
            Texture::Checker => (0.5 + wave(cycles[0]) * wave(cycles[1])).clamp(0.0, 1.0),
            Texture::Gradient => (0.5 + 0.4 * (cycles[0] - 0.5)).clamp(0.0, 1.0),
        }
    }
}

/// Range of luma below the gap.
const DARK: [f32; 2] = [0.12, 0.34];
/// Range of luma above the gap.
const LIGHT: [f32; 2] = [0.6, 0.86];

#[derive(Clone, Copy)]
struct Paint {
    /// Turns.
    hue: f32,
    saturation: f32,
    luma: f32,
}

impl Paint {
    fn draw(hue: f32, side: [f32; 2], draws: &mut Draws) -> Paint {
        Paint { hue, saturation: between(draws, 0.2, 0.9), luma: between(draws, side[0], side[1]) }
    }

    /// Returns a similar paint on the same side of the gap.
    fn varied(self, draws: &mut Draws) -> Paint {
        let side = if self.luma < LIGHT[0] { DARK } else { LIGHT };
        Paint {
            hue: self.hue + 0.03 * draws.normal(),
            saturation: (self.saturation + 0.08 * draws.normal()).clamp(0.0, 1.0),
            luma: (self.luma + 0.04 * draws.normal()).clamp(side[0], side[1]),
        }
    }

    /// Returns red, green and blue in [0, 1] with exactly this luma (Rec. 601).
    fn rgb(self) -> Colour {
        let pure = [0.0, 2.0 / 3.0, 1.0 / 3.0].map(|offset| {
            let turn = self.hue + offset;
            let ramp = (6.0 * (turn - turn.floor()) - 3.0).abs() - 1.0;
            mix(1.0, ramp.clamp(0.0, 1.0), self.saturation)
        });
        let luma = 0.299 * pure[0] + 0.587 * pure[1] + 0.114 * pure[2];
        if self.luma < luma {
            pure.map(|value| value * self.luma / luma)
        } else {
            pure.map(|value| mix(value, 1.0, (self.luma - luma) / (1.0 - luma).max(1e-6)))
        }
    }
}

/// Moves the points a little, then scales, shears and rotates all of them. The rotation is limited, so
/// that a 6 never looks like a 9.
fn deform(strokes: &mut [Vec<Point>], draws: &mut Draws) {
    let (sin, cos) = libm::sincosf((0.2 * draws.normal()).clamp(-0.5, 0.5));
    let shear = (0.15 * draws.normal()).clamp(-0.35, 0.35);
    let [width, height] = [(); 2].map(|()| libm::expf((0.14 * draws.normal()).clamp(-0.35, 0.25)));
    for point in strokes.iter_mut().flatten() {
        let x = width * (point[0] + WOBBLE * draws.normal());
        let y = height * (point[1] + WOBBLE * draws.normal());
        let x = x - shear * y;
        *point = [x * cos - y * sin, x * sin + y * cos];
    }
}

/// Shifts all segments together, within the image.
fn shift(segments: &mut [Segment], draws: &mut Draws) {
    let shift = extent(segments).map(|[low, high]| {
        let (least, most) = (-MARGIN - low, MARGIN - high);
        let wanted = 0.12 * draws.normal();
        // Centres a character that is larger than the image.
        if least < most { wanted.clamp(least, most) } else { 0.5 * (least + most) }
    });
    for Segment { from, .. } in segments {
        *from = [from[0] + shift[0], from[1] + shift[1]];
    }
}

/// Standard deviation of the move of a single point.
const WOBBLE: f32 = 0.03;
/// Largest coordinate of the middle line of a stroke.
const MARGIN: f32 = 0.85;

/// A straight piece of a stroke.
struct Segment {
    from: Point,
    along: Point,
    /// 1 / |along|^2.
    scale: f32,
}

/// Splits the strokes into straight pieces.
fn flatten(strokes: &[Vec<Point>]) -> Vec<Segment> {
    const PIECES: usize = 6;
    let mut segments = Vec::new();
    for stroke in strokes {
        for start in (0..stroke.len() - 2).step_by(2) {
            let [a, b, c] = [stroke[start], stroke[start + 1], stroke[start + 2]];
            let mut from = a;
            for piece in 1..=PIECES {
                let t = piece as f32 / PIECES as f32;
                let to = [0, 1].map(|axis| mix(mix(a[axis], b[axis], t), mix(b[axis], c[axis], t), t));
                let along = [to[0] - from[0], to[1] - from[1]];
                let scale = 1.0 / (along[0] * along[0] + along[1] * along[1]).max(1e-12);
                segments.push(Segment { from, along, scale });
                from = to;
            }
        }
    }
    segments
}

/// Returns lowest and highest x, then lowest and highest y.
fn extent(segments: &[Segment]) -> [[f32; 2]; 2] {
    [0, 1].map(|axis| {
        let ends = segments.iter().flat_map(|s| [s.from[axis], s.from[axis] + s.along[axis]]);
        ends.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], u| [low.min(u), high.max(u)])
    })
}

/// Returns the distance from `at` to the nearest segment.
fn distance(segments: &[Segment], at: Point) -> f32 {
    let mut nearest = f32::INFINITY;
    for Segment { from, along, scale } in segments {
        let to = [at[0] - from[0], at[1] - from[1]];
        let t = ((to[0] * along[0] + to[1] * along[1]) * scale).clamp(0.0, 1.0);
        let gap = [to[0] - t * along[0], to[1] - t * along[1]];
        nearest = nearest.min(gap[0] * gap[0] + gap[1] * gap[1]);
    }
    nearest.sqrt()
}

fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + t * (b - a)
}

fn between(draws: &mut Draws, low: f32, high: f32) -> f32 {
    low + (high - low) * draws.uniform()
}

/// The digits, each in its usual forms.
#[rustfmt::skip]
const DIGITS: [&[&[Stroke]]; 10] = [
    &[&[&[[0.0, -0.7], [0.43, -0.7], [0.43, 0.0], [0.43, 0.7], [0.0, 0.7], [-0.43, 0.7], [-0.43, 0.0],
          [-0.43, -0.7], [0.0, -0.7]]]],
    &[
        &[&[[-0.28, -0.4], [-0.05, -0.5], [0.08, -0.7], [0.08, 0.0], [0.08, 0.7]]],
        &[&[[-0.28, -0.4], [-0.05, -0.5], [0.04, -0.7], [0.04, 0.0], [0.04, 0.7]],
          &[[-0.32, 0.7], [0.0, 0.7], [0.38, 0.7]]],
    ],
    &[&[&[[-0.42, -0.36], [-0.4, -0.7], [0.0, -0.7], [0.42, -0.7], [0.4, -0.32], [0.38, 0.02], [-0.44, 0.7],
          [0.0, 0.7], [0.46, 0.7]]]],
    &[&[&[[-0.4, -0.52], [-0.28, -0.7], [0.0, -0.7], [0.4, -0.7], [0.4, -0.38], [0.4, -0.06], [-0.12, -0.06],
          [0.46, -0.06], [0.46, 0.32], [0.46, 0.7], [0.0, 0.7], [-0.3, 0.7], [-0.44, 0.5]]]],
    &[
        &[&[[0.2, -0.7], [-0.14, -0.24], [-0.5, 0.24], [0.0, 0.24], [0.5, 0.24]],
          &[[0.2, -0.7], [0.2, 0.0], [0.2, 0.7]]],
        &[&[[-0.32, -0.7], [-0.38, -0.3], [-0.44, 0.1], [0.0, 0.1], [0.48, 0.1]],
          &[[0.24, -0.6], [0.24, 0.0], [0.24, 0.7]]],
    ],
    &[&[&[[0.4, -0.7], [0.0, -0.7], [-0.34, -0.7], [-0.37, -0.4], [-0.4, -0.08], [-0.2, -0.24], [0.04, -0.24],
          [0.46, -0.24], [0.46, 0.22], [0.46, 0.7], [0.0, 0.7], [-0.3, 0.7], [-0.46, 0.52]]]],
    &[&[&[[0.3, -0.7], [-0.12, -0.6], [-0.32, -0.15], [-0.44, 0.05], [-0.44, 0.28], [-0.44, 0.7], [0.0, 0.7],
          [0.44, 0.7], [0.44, 0.28], [0.44, -0.12], [0.02, -0.12], [-0.34, -0.12], [-0.42, 0.22]]]],
    &[
        &[&[[-0.44, -0.7], [0.0, -0.7], [0.44, -0.7], [0.06, -0.1], [-0.14, 0.7]]],
        &[&[[-0.44, -0.7], [0.0, -0.7], [0.44, -0.7], [0.06, -0.1], [-0.14, 0.7]],
          &[[-0.24, 0.02], [0.06, 0.02], [0.36, 0.02]]],
    ],
    &[&[&[[0.0, -0.03], [-0.37, -0.03], [-0.37, -0.37], [-0.37, -0.7], [0.0, -0.7], [0.37, -0.7],
          [0.37, -0.37], [0.37, -0.03], [0.0, -0.03], [0.45, -0.03], [0.45, 0.34], [0.45, 0.7], [0.0, 0.7],
          [-0.45, 0.7], [-0.45, 0.34], [-0.45, -0.03], [0.0, -0.03]]]],
    &[
        &[&[[-0.3, 0.7], [0.12, 0.6], [0.32, 0.15], [0.44, -0.05], [0.44, -0.28], [0.44, -0.7], [0.0, -0.7],
          [-0.44, -0.7], [-0.44, -0.28], [-0.44, 0.12], [-0.02, 0.12], [0.34, 0.12], [0.42, -0.22]]],
        &[&[[0.4, -0.3], [0.4, -0.7], [0.0, -0.7], [-0.42, -0.7], [-0.42, -0.28], [-0.42, 0.1], [0.0, 0.1],
          [0.4, 0.1], [0.4, -0.3], [0.4, 0.2], [0.34, 0.7]]],
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ink_and_ground_differ_in_luma_in_every_look() {
        let luma = |paint: Paint| {
            let [red, green, blue] = paint.rgb();
            assert!(
                [red, green, blue].iter().all(|value| (0.0..=1.0001).contains(value)),
                "{red} {green} {blue}"
            );
            0.299 * red + 0.587 * green + 0.114 * blue
        };
        let mut draws = Stream::new("test", "look").at(0);
        for _ in 0..2000 {
            let look = Look::draw(&mut draws).varied(&mut draws);
            for ground in look.ground {
                assert!((luma(look.ink) - luma(ground)).abs() > 0.25);
            }
        }
    }

    #[test]
    fn strokes_stay_inside_the_image_and_turn_less_than_a_right_angle() {
        let up: Vec<Point> = vec![[0.0, 0.7], [0.0, 0.0], [0.0, -0.7]];
        let mut draws = Stream::new("test", "pose").at(0);
        for _ in 0..2000 {
            let mut strokes = vec![up.clone()];
            deform(&mut strokes, &mut draws);
            let turned = [strokes[0][2][0] - strokes[0][0][0], strokes[0][2][1] - strokes[0][0][1]];
            assert!(turned[1] < 0.0 && turned[0].abs() < -1.2 * turned[1], "{turned:?}");
            let mut segments = flatten(&strokes);
            shift(&mut segments, &mut draws);
            for [low, high] in extent(&segments) {
                assert!(low > -1.0 && high < 1.0, "{low} {high}");
            }
        }
    }
}
