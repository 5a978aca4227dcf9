//! Line plots, drawn into one SVG.

use std::fmt::Write;

/// One plot.
pub struct Plot {
    /// The title above the plot.
    pub title: String,
    /// The label of the horizontal axis.
    pub x: String,
    /// The label of the vertical axis.
    pub y: String,
    /// True for a logarithmic horizontal axis.
    pub logarithmic: bool,
    /// The names and points of the lines.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

const WIDTH: f64 = 520.;
const HEIGHT: f64 = 340.;
const LEFT: f64 = 64.;
const RIGHT: f64 = 120.;
const TOP: f64 = 36.;
const BOTTOM: f64 = 48.;
const COLOURS: [&str; 6] = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#7f7f7f"];

/// Draws all plots, two in a row.
///
/// # Panics
///
/// Never: writing to a string can't fail.
#[must_use]
pub fn svg(plots: &[Plot]) -> String {
    let rows = plots.len().div_ceil(2);
    #[expect(clippy::cast_precision_loss, reason = "a few rows")]
    let (width, height) = (2. * WIDTH, rows as f64 * HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, plot) in plots.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a few plots")]
        let (x, y) = ((i % 2) as f64 * WIDTH, (i / 2) as f64 * HEIGHT);
        writeln!(svg, "<g transform=\"translate({x} {y})\">").expect("infallible");
        plot.draw(&mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

impl Plot {
    fn draw(&self, svg: &mut String) {
        let scale = |x: f64| if self.logarithmic { x.log10() } else { x };
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let left = points().map(|point| scale(point.0)).fold(f64::INFINITY, f64::min);
        let right = points().map(|point| scale(point.0)).fold(left + 1e-9, f64::max);
        let top = points().map(|point| point.1).fold(1e-9, f64::max) * 1.05;
        let at = |(x, y): (f64, f64)| {
            let x = LEFT + (scale(x) - left) / (right - left) * (WIDTH - LEFT - RIGHT);
            (x, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM))
        };
        let (bottom, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let mut line = |text: String| {
            svg.push_str(&text);
            svg.push('\n');
        };
        line(format!("<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{}</text>", self.title));
        line(format!("<path d=\"M{LEFT} {TOP}V{bottom}H{end}\" fill=\"none\" stroke=\"black\"/>"));
        line(format!("<text x=\"{end}\" y=\"{}\" text-anchor=\"end\">{}</text>", bottom + 36., self.x));
        line(format!("<text x=\"{}\" y=\"{}\">{}</text>", LEFT + 6., TOP + 4., self.y));
        for i in 0..=4 {
            let value = top * f64::from(i) / 4.;
            let (_, y) = at((points().next().map_or(1., |point| point.0), value));
            line(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 6., y + 4., number(value)));
            line(format!("<path d=\"M{LEFT} {y}H{end}\" stroke=\"#dddddd\"/>"));
        }
        if let Some((_, points)) = self.lines.first() {
            for point in points {
                let (x, _) = at(*point);
                let number = number(point.0);
                line(format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{number}</text>", bottom + 18.));
            }
        }
        for (i, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let path: Vec<String> =
                points.iter().map(|point| at(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            line(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            ));
            #[expect(clippy::cast_precision_loss, reason = "a few lines")]
            let y = TOP + 18. * i as f64;
            line(format!("<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>", end + 10., y + 8.));
        }
    }
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.3}M", v / 1e6).replace(".000", ""),
        v if v >= 1e3 => format!("{:.1}k", v / 1e3).replace(".0k", "k"),
        v if v < 10. && v.fract() > 0.01 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
