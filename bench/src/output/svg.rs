//! A small SVG writer: log scales, axes, paths.
//!
//! Written by hand and not with a plotting crate, because those put colours into each element. Here elements only have
//! classes, and the page's style sheet colours them, for light and for dark.

/// Text as HTML and SVG want it, in elements and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in any form.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Values from `low` to `high` onto pixels from `from` to `to`, by their logarithm.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// A scale; a range of nothing is widened to a decade.
    pub fn new(low: f64, high: f64, from: f64, to: f64) -> Self {
        let low = if low.is_finite() && low > 0.0 { low } else { 1.0 };
        let high = if high.is_finite() && high > low { high } else { low * 10.0 };
        Self { low, high, from, to }
    }

    /// The pixel of a value; one beyond the ends is at the end.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value.max(self.low).min(self.high) / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// Values for an axis: powers of ten, and with fewer than four of those also 2 and 5 times them.
    pub fn ticks(&self) -> Vec<f64> {
        let fine = self.high / self.low < 2000.0;
        let mut ticks = Vec::new();
        let mut decade = 10f64.powf(self.low.log10().floor());
        while decade <= self.high && ticks.len() < 64 {
            let steps: &[f64] = if fine { &[1.0, 2.0, 5.0] } else { &[1.0] };
            ticks.extend(steps.iter().map(|step| decade * step));
            decade *= 10.0;
        }
        ticks.retain(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick));
        ticks
    }
}

/// Nanoseconds with the unit that suits them.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let text = if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {unit}")
}

/// A drawing.
#[derive(Debug)]
pub struct Svg(String);

impl Svg {
    /// An empty one of this size, with a name for those who do not see it.
    pub fn new(width: f64, height: f64, name: &str) -> Self {
        Self(format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(name)))
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        self.0.push_str(&format!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// A line through points.
    pub fn path(&mut self, class: &str, points: &[[f64; 2]]) {
        if points.len() < 2 {
            return;
        }
        self.0.push_str(&format!("<path class=\"{class}\" d=\"M"));
        for (at, [x, y]) in points.iter().enumerate() {
            self.0.push_str(&format!("{}{x:.1} {y:.1}", if at > 0 { "L" } else { "" }));
        }
        self.0.push_str("\"/>");
    }

    /// A dot that shows `title` when pointed at.
    pub fn dot(&mut self, class: &str, [x, y]: [f64; 2], title: &str) {
        let title = escape(title);
        self.0.push_str(&format!(
            "<g class=\"{class}\"><title>{title}</title><circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"10\"/>\
             <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/></g>"
        ));
    }

    /// Text; `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: &str, text: &str) {
        let text = escape(text);
        self.0.push_str(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// The text of it.
    pub fn finish(self) -> String {
        self.0 + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_markup_is_text() {
        assert_eq!(
            escape("<a href='x'>&\"\u{0}</a>"),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}&lt;/a&gt;"
        );
    }

    #[test]
    fn scales() {
        let scale = Scale::new(100.0, 10_000.0, 0.0, 200.0);
        assert!((scale.at(1000.0) - 100.0).abs() < 1e-9);
        assert!((scale.at(1.0) - 0.0).abs() < 1e-9 && (scale.at(1e9) - 200.0).abs() < 1e-9);
        assert_eq!(scale.ticks(), [100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0]);
        assert_eq!(Scale::new(1.0, 1e5, 0.0, 1.0).ticks().len(), 6);
        for (low, high) in [(0.0, 0.0), (f64::NAN, f64::INFINITY), (5.0, 5.0), (-1.0, 1.0)] {
            let scale = Scale::new(low, high, 0.0, 1.0);
            assert!(scale.at(3.0).is_finite() && scale.ticks().len() < 64);
        }
    }

    #[test]
    fn times_with_units() {
        assert_eq!(
            [0.5, 890.0, 1430.0, 12_345.0, 2e6, 1.5e9].map(time),
            ["0.5 ns", "890 ns", "1.43 µs", "12.3 µs", "2 ms", "1.5 s"]
        );
    }
}
