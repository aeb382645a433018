//! What the benches share: texts as the stock client spells them, recorded batches, an engine and a
//! server to run them on.
//!
//! Absent: measuring, which each bench does with the tool that fits.

#![allow(dead_code, reason = "every bench includes this folder and uses its own part of it")]

pub(crate) mod corpus;
pub(crate) mod loopback;
pub(crate) mod null;
pub(crate) mod parser;
pub(crate) mod spelling;
pub(crate) mod wall;
