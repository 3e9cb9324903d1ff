//! Prints what answers without skill earn: the baseline tables of `docs/environments.md` and of the pages it names.
//!
//! `cargo run -p environments --example baselines [FAMILY...]`

use environments::{Family, UnknownFamily};

fn main() -> Result<(), UnknownFamily> {
    let named: Vec<Family> = std::env::args()
        .skip(1)
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?;
    let families = if named.is_empty() {
        Family::ALL.to_vec()
    } else {
        named
    };
    print!("{}", environments::baselines::table(families, 1000));
    Ok(())
}
