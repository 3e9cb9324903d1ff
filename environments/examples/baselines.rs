//! Prints what answers without skill earn: the baseline table of `docs/environments.md`.
//!
//! `cargo run -p environments --example baselines`

fn main() {
    print!("{}", environments::baselines::table(1000));
}
