//! What tests are made with.

#[cfg(test)]
pub(crate) mod certificates;
#[cfg(test)]
pub(crate) mod dice;
pub(crate) mod fuzz;
