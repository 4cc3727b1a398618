//! What a page is made of, whatever it is shown as.

/// Pieces one under the other.
pub struct Page {
    pub title: String,
    pub blocks: Vec<Block>,
}

pub enum Block {
    Heading(String),
    Text(String),
    Table(Table),
    /// SVG, and what it shows.
    Chart(String, String),
}

pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Page {
    pub fn new(title: &str) -> Page {
        Page { title: title.into(), blocks: Vec::new() }
    }
    pub fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Heading(text.into()));
    }
    pub fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }
    pub fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) {
        let header = header.iter().map(|cell| cell.to_string()).collect();
        self.blocks.push(Block::Table(Table { header, rows }));
    }
    pub fn chart(&mut self, svg: String, caption: impl Into<String>) {
        self.blocks.push(Block::Chart(svg, caption.into()));
    }

    /// Charts are left out: their figures are in the tables.
    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n", self.title);
        for block in &self.blocks {
            out += &match block {
                Block::Heading(text) => format!("\n## {text}\n"),
                Block::Text(text) => format!("\n{text}\n"),
                Block::Table(table) => table.markdown(),
                Block::Chart(..) => String::new(),
            };
        }
        out
    }
}

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut out = "\n".to_owned() + &line(&self.header);
        out += &format!("|{}\n", "---|".repeat(self.header.len()));
        self.rows.iter().for_each(|row| out += &line(row));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_has_every_table_and_keeps_its_columns() {
        let mut page = Page::new("t");
        page.heading("h");
        page.text("words");
        page.table(&["a", "b"], vec![vec!["1|2".into(), "3".into()]]);
        page.chart("<svg/>".into(), "c");
        assert_eq!(page.markdown(), "# t\n\n## h\n\nwords\n\n| a | b |\n|---|---|\n| 1\\|2 | 3 |\n");
    }
}
