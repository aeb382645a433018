//! How tinygrad prints a `UOp`: a node a line, two spaces a level, and a node that has several
//! parents once, with a name (`x2:=UOp(...)`), and then as ` x2`.
//!
//! Names count the nodes below the root in the order in which a walk from the root first meets
//! them, so they have gaps where a node has one parent.

use std::fmt;

use super::repr;
use super::symbolic::{Argument, Expression, Node};

/// What a walk has found out about a node.
#[derive(Clone, Copy, Default)]
struct Seen {
    number: u32,
    parents: u32,
    printed: bool,
}

pub(super) fn write(expression: &Expression<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(root) = expression.nodes.len().checked_sub(1) else { return Ok(()) };
    let mut seen = number(expression, root);
    // Nodes whose sources are still to print, with how many of them are done.
    let mut open: Vec<(usize, u32)> = Vec::new();
    enter(expression, root, &mut seen, &mut open, f)?;
    while let Some((node, done)) = open.last_mut() {
        match source(expression, *node, *done) {
            Some(next) => {
                *done += 1;
                f.write_str("\n")?;
                if !enter(expression, next, &mut seen, &mut open, f)? {
                    f.write_str(",")?;
                }
            }
            None => {
                open.pop();
                f.write_str(if open.is_empty() { "))" } else { "))," })?;
            }
        }
    }
    Ok(())
}

/// Prints a node up to its sources and opens it. False if it was printed before, and now only its
/// name.
fn enter(
    expression: &Expression<'_>,
    index: usize,
    seen: &mut [Seen],
    open: &mut Vec<(usize, u32)>,
    f: &mut fmt::Formatter<'_>,
) -> Result<bool, fmt::Error> {
    let indent = 2 * open.len();
    let Seen { number, parents, printed } = seen[index];
    write!(f, "{:indent$}", "")?;
    if printed {
        write!(f, " x{number}")?;
        return Ok(false);
    }
    if parents > 1 {
        write!(f, "x{number}:=")?;
    }
    let Node { operation, data_type, argument, .. } = &expression.nodes[index];
    write!(f, "UOp(Ops.{}, dtypes.{}, arg=", operation.name(), data_type.name())?;
    match argument {
        Argument::Bool(value) => write!(f, "{}", repr::Bool(*value))?,
        Argument::Int(value) => write!(f, "{value}")?,
        Argument::None => f.write_str("None")?,
        Argument::Variable { name, min, max } => {
            write!(f, "({}, {min}, {max})", repr::Str(name))?;
        }
    }
    f.write_str(", src=(")?;
    seen[index].printed = true;
    open.push((index, 0));
    Ok(true)
}

/// Walks from the root, parents first.
fn number(expression: &Expression<'_>, root: usize) -> Vec<Seen> {
    let mut seen = vec![Seen::default(); expression.nodes.len()];
    let mut next_number = 0;
    let mut open: Vec<(usize, u32)> = vec![(root, 0)];
    while let Some((node, done)) = open.last_mut() {
        let Some(next) = source(expression, *node, *done) else {
            open.pop();
            continue;
        };
        *done += 1;
        let entry = &mut seen[next];
        entry.parents += 1;
        if entry.parents == 1 {
            entry.number = next_number;
            next_number += 1;
            open.push((next, 0));
        }
    }
    seen
}

fn source(expression: &Expression<'_>, node: usize, position: u32) -> Option<usize> {
    let sources = &expression.nodes[node].sources;
    let at = sources.start + position;
    (at < sources.end).then(|| expression.sources[at as usize] as usize)
}
