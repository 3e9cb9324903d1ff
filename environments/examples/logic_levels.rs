//! Prints how hard the levels of the logic families are: the table of `docs/families/logic.md`.
//!
//! `cargo run -p environments --example logic_levels [FAMILY...]`

use environments::logic::levels::{FAMILIES, table};
use environments::{Family, UnknownFamily};

fn main() -> Result<(), UnknownFamily> {
    let named: Vec<Family> = std::env::args()
        .skip(1)
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?;
    let families = if named.is_empty() {
        FAMILIES.to_vec()
    } else {
        named
    };
    print!("{}", table(&families, 100));
    Ok(())
}
