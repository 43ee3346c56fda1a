//! Tables of the page: their HTML, the grouping of their rows, the colours of paths.

use super::plot;
use super::svg::escape;
use crate::model::PathResult;

/// Which path has which colour: by the order in which they come first.
pub struct Colours(Vec<String>);

impl Colours {
    /// The colours of a run's paths.
    pub fn of(paths: &[PathResult]) -> Self {
        let mut names: Vec<String> = Vec::new();
        for path in paths {
            if !names.contains(&path.path) {
                names.push(path.path.clone());
            }
        }
        Self(names)
    }

    /// The number of its colour.
    pub fn get(&self, path: &PathResult) -> usize {
        self.0.iter().position(|name| *name == path.path).unwrap_or(0)
    }

    /// The name with its colour, for a table.
    pub fn name(&self, path: &PathResult) -> String {
        let class = plot::class(self.get(path));
        format!("<span class=\"key {class}\"></span>{}", escape(&path.path))
    }
}

/// A row of a table.
pub enum Row {
    /// The name of the group that the rows below belong to.
    Group(String),
    /// Cells, in HTML.
    Cells(Vec<String>),
}

/// A table. The first `left` columns are text, the others numbers.
pub fn table(header: &[&str], left: usize, rows: &[Row]) -> String {
    let class = |at: usize| if at < left { " class=\"l\"" } else { "" };
    let mut text = String::from("<div class=\"wide\"><table><thead><tr>");
    for (at, cell) in header.iter().enumerate() {
        text.push_str(&format!("<th{}>{}</th>", class(at), escape(cell)));
    }
    text.push_str("</tr></thead><tbody>\n");
    for row in rows {
        match row {
            Row::Group(name) => {
                let (name, columns) = (escape(name), header.len());
                text.push_str(&format!("<tr><th class=\"l group\" colspan=\"{columns}\">{name}</th></tr>\n"));
            }
            Row::Cells(cells) => {
                text.push_str("<tr>");
                for (at, cell) in cells.iter().enumerate() {
                    text.push_str(&format!("<td{}>{cell}</td>", class(at)));
                }
                text.push_str("</tr>\n");
            }
        }
    }
    text + "</tbody></table></div>\n"
}

/// The paths of each size and load, in the order in which those come first: what may be compared with one another.
pub fn groups(paths: &[PathResult]) -> Vec<(String, Vec<&PathResult>)> {
    let mut groups: Vec<(String, Vec<&PathResult>)> = Vec::new();
    for path in paths {
        let vectors = if path.vectors == 1 { "vector" } else { "vectors" };
        let producers =
            if path.producers == 1 { String::new() } else { format!(", {} producers", path.producers) };
        let name = format!("{} {vectors}{producers}, {} load", path.vectors, path.load_name());
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, group)) => group.push(path),
            None => groups.push((name, vec![path])),
        }
    }
    groups
}

/// Rows for each path, under the name of its group.
pub fn by_group(paths: &[PathResult], rows: impl Fn(&PathResult) -> Vec<Vec<String>>) -> Vec<Row> {
    let mut all = Vec::new();
    for (name, group) in groups(paths) {
        all.push(Row::Group(name));
        all.extend(group.into_iter().flat_map(&rows).map(Row::Cells));
    }
    all
}
