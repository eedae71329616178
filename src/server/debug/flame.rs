//! A flame graph as one SVG without scripts: width is time, the root is at the bottom, names show on hovering.
//! The usual crate for it, inferno, is under a licence (CDDL) that deny.toml doesn't let in.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 1600.0;
const ROW: f64 = 17.0;
const TOP: f64 = 28.0;
/// Narrower boxes aren't drawn. In pixels.
const NARROW: f64 = 0.3;
/// Rows at most, so that a deep recursion doesn't make a picture of megabytes.
const ROWS: usize = 200;

#[derive(Default)]
struct Node {
    samples: u64,
    inner: BTreeMap<String, Node>,
}

impl Node {
    fn depth(&self) -> usize {
        self.inner.values().map(|node| node.depth() + 1).max().unwrap_or(0)
    }
}

/// Draws stacks, each from the outermost function inwards, with its number of samples.
pub(super) fn svg(stacks: &[(Vec<String>, u64)]) -> String {
    let mut root = Node::default();
    for (stack, count) in stacks {
        root.samples += count;
        let mut node = &mut root;
        for name in stack.iter().take(ROWS) {
            node = node.inner.entry(name.clone()).or_default();
            node.samples += count;
        }
    }
    let height = TOP + ROW * (root.depth() as f64 + 1.0) + 8.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"ui-monospace,monospace\" font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"8\" y=\"18\" font-size=\"13\">kiro-server: {} samples of CPU time</text>\n",
        root.samples
    );
    let mut canvas = Canvas { all: root.samples.max(1), height, out: &mut out };
    canvas.draw("all", &root, 0.0, 0);
    out.push_str("</svg>\n");
    out
}

struct Canvas<'a> {
    all: u64,
    height: f64,
    out: &'a mut String,
}

impl Canvas<'_> {
    fn draw(&mut self, name: &str, node: &Node, x: f64, row: usize) {
        let width = WIDTH * node.samples as f64 / self.all as f64;
        if width < NARROW {
            return;
        }
        let y = self.height - ROW * (row as f64 + 1.0) - 4.0;
        let percent = 100.0 * node.samples as f64 / self.all as f64;
        let label: String = name.chars().take((width / 6.7) as usize).collect();
        let label = if width < 30.0 { String::new() } else { escaped(&label) };
        let (name, samples) = (escaped(name), node.samples);
        // Writing into a String can't fail.
        let _written = writeln!(
            self.out,
            "<g><title>{name} ({samples} samples, {percent:.1}%)</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{:.1}\" fill=\"{}\" stroke=\"#fff\"/><text x=\"{:.1}\" y=\"{:.1}\">{label}</text></g>",
            ROW - 1.0,
            color(&name),
            x + 3.0,
            y + 12.0
        );
        let mut x = x;
        for (name, inner) in &node.inner {
            self.draw(name, inner, x, row + 1);
            x += WIDTH * inner.samples as f64 / self.all as f64;
        }
    }
}

/// The same name has the same warm color everywhere.
fn color(name: &str) -> String {
    let hash = name.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    format!("hsl({},{}%,{}%)", 8 + hash % 45, 75 + hash / 64 % 20, 62 + hash / 4096 % 12)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_shares_and_names_are_escaped() {
        let stack = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let picture = svg(&[(stack(&["main", "Vec<T>::push"]), 3), (stack(&["main", "idle"]), 1)]);
        assert!(picture.contains("4 samples of CPU time"), "{picture}");
        assert!(picture.contains("<title>Vec&lt;T&gt;::push (3 samples, 75.0%)</title>"), "{picture}");
        assert!(picture.contains("width=\"1200.0\"") && picture.contains("width=\"400.0\""), "{picture}");
        assert_eq!(picture.matches("<g>").count(), picture.matches("</g>").count());
    }
}
