//! A page as HTML that needs nothing else: style and charts are in it, nothing is fetched.

use super::page::{Block, Page, Table};

const STYLE: &str = include_str!("page.css");

pub fn render(page: &Page) -> String {
    let mut body = format!("<h1>{}</h1>\n", escape(&page.title));
    body += &contents(page);
    let mut sections = 0;
    for block in &page.blocks {
        body += &match block {
            Block::Heading(text) => {
                sections += 1;
                format!("<h2 id=\"s{sections}\">{}</h2>\n", escape(text))
            }
            Block::Text(text) => format!("<p>{}</p>\n", escape(text)),
            Block::Table(table) => self::table(table),
            Block::Chart(svg, caption) => {
                format!(
                    "<figure role=\"img\" aria-label=\"{0}\">{svg}<figcaption>{0}</figcaption></figure>\n",
                    escape(caption)
                )
            }
        };
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&page.title)
    )
}

fn contents(page: &Page) -> String {
    let headings = page.blocks.iter().filter_map(|block| match block {
        Block::Heading(text) => Some(text),
        _ => None,
    });
    let items: String = headings
        .enumerate()
        .map(|(n, text)| format!("<li><a href=\"#s{}\">{}</a></li>", n + 1, escape(text)))
        .collect();
    format!("<nav><ul>{items}</ul></nav>\n")
}

fn table(table: &Table) -> String {
    let cell = |tag: &str, text: &String| {
        let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-');
        let class = if is_number { " class=\"n\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", escape(text))
    };
    let row = |tag: &str, cells: &[String]| -> String {
        let cells: String = cells.iter().map(|text| cell(tag, text)).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = table.rows.iter().map(|cells| row("td", cells)).collect();
    format!(
        "<div class=\"wide\"><table>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n",
        row("th", &table.header)
    )
}

/// Whatever a file says is text, never markup.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_stands_by_itself_and_text_is_no_markup() {
        let mut page = Page::new("a < b");
        page.heading("<script>");
        page.table(&["x"], vec![vec!["12.5".into()], vec!["</table>".into()]]);
        page.chart("<svg></svg>".into(), "it \"shows\"");
        let html = render(&page);
        for part in [
            "<title>a &lt; b</title>",
            "&lt;script&gt;",
            "<td class=\"n\">12.5</td>",
            "&lt;/table&gt;",
            "it &quot;shows&quot;",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        for part in ["<script", "http://", "https://", "src="] {
            assert!(!html.contains(part), "{part} in {html}");
        }
    }
}
