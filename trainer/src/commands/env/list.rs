//! `baleen env list`: a line a family.

use environments::{Domain, Family};
use serde::Serialize;

use super::super::{Failure, output};

/// List the task families: domain, levels, tools, what is asked
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What is told of a family.
#[derive(Debug, Serialize)]
struct Row {
    family: Family,
    domain: Domain,
    version: u32,
    /// First and last.
    levels: (u32, u32),
    has_tools: bool,
    needs_sandbox: bool,
    summary: &'static str,
}

/// Prints the list, by domain.
pub fn run(args: &Args) -> Result<(), Failure> {
    let text = match args.json {
        true => serde_json::to_string(&rows()).map_err(Failure::running)?,
        false => table(&rows()),
    };
    output::print_line(&text).map(|_| ())
}

fn rows() -> Vec<Row> {
    let row = |family: Family| Row {
        family,
        domain: family.domain(),
        version: family.version(),
        levels: (*family.levels().start(), *family.levels().end()),
        has_tools: family.has_tools(),
        needs_sandbox: family.needs_sandbox(),
        summary: family.summary(),
    };
    let mut rows: Vec<Row> = Family::ALL.into_iter().map(row).collect();
    rows.sort_by_key(|row| row.domain);
    rows
}

fn table(rows: &[Row]) -> String {
    let mark = |is_so| if is_so { "yes" } else { "-" };
    let mut text = format!(
        "{:<12} {:<18} {:>7} {:>6} {:>5} {:>7}  asks for",
        "domain", "family", "version", "levels", "tools", "sandbox"
    );
    for row in rows {
        text += &format!(
            "\n{:<12} {:<18} {:>7} {:>6} {:>5} {:>7}  {}",
            row.domain.name(),
            row.family.name(),
            row.version,
            format!("{}-{}", row.levels.0, row.levels.1),
            mark(row.has_tools),
            mark(row.needs_sandbox),
            row.summary
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_listed_by_domain_in_columns() {
        let table = table(&rows());
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 1 + Family::ALL.len());
        let asked = lines[0].find("asks for").expect("the last column");
        for line in &lines {
            assert_eq!(&line[asked - 2..asked], "  ", "{line}");
        }
        let of = |name: &str| {
            let line = lines.iter().find(|line| line.contains(name));
            let words = line.expect("its line").split_whitespace();
            words.take(6).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(" sums "), "math sums 1 1-6 - -");
        assert_eq!(of(" lookup "), "agent lookup 1 1-3 yes -");
        assert_eq!(
            of(" repair_program "),
            "programming repair_program 1 1-5 - yes"
        );
    }
}
