//! A seeded simulator: clients, the engines of two shards, their HTTP connections and the mesh, on
//! one thread, without sockets, over null devices. Every choice comes from a [`pick::Pick`], so a
//! seed or a string of bytes is a whole history. A reference model foretells what each command
//! comes to, every reply is checked against it, and at the end nothing may be left.
//!
//! Reading order: `pick` (where choices come from), `command` (what clients send), `model` (what it
//! should mean) with `checks` and `effects`, `ledger` (what a batch's reply should be), `client`
//! (bytes of requests and replies), `server` (the tasks of a connection and of the mesh), `world`
//! (what happens when).
//!
//! `story` is a second one, of two hosts that copy to each other: `books` is its model, `hosts`
//! what becomes of a batch, `courier` what goes from host to host.

pub mod books;
pub mod checks;
pub mod client;
pub mod command;
pub mod courier;
pub mod effects;
pub mod hosts;
pub mod ledger;
pub mod model;
pub mod pick;
pub mod server;
pub mod story;
pub mod world;
