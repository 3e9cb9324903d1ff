//! Arithmetic task families, one file each.
//!
//! [`sums`], [`products`], [`compare`] and [`gcd`] ask for one integer, graded by
//! `integer_answer`. [`countdown`] asks for an expression, which [`expression`] parses and evaluates
//! with exact fractions.

pub(crate) mod compare;
pub(crate) mod countdown;
pub(crate) mod expression;
pub(crate) mod gcd;
pub(crate) mod products;
pub(crate) mod sums;
