//! Programming task families, one file each.
//!
//! [`compose_function`] and [`repair_program`] speak a small language of list, text and interval operations
//! ([`steps`], [`program`]), told in words, written in Python and run in Rust. What the policy writes runs in the
//! sandbox ([`judge`]); the right outputs never enter it. [`invert_program`] shows such a program and asks for an input,
//! which is run here. [`efficient_program`] asks for a function that is fast on long lists. [`regex_synthesis`] asks for a regular expression, matched here as well.
//! [`table_answer`] asks about files that the code interpreter reads.

mod code_block;
pub(crate) mod compose_function;
pub(crate) mod efficient_program;
pub(crate) mod invert_program;
mod judge;
#[cfg(test)]
mod levels;
mod pattern;
mod program;
pub(crate) mod regex_synthesis;
pub(crate) mod repair_program;
mod steps;
pub(crate) mod table_answer;
mod value;
