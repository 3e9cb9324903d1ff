//! Integration tests live in `all.rs`; this empty library only gives the package a target.
