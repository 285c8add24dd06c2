//! Properties of the wire format, and the corpus that fixes version 1 of it.

mod corpus;
mod credit;
mod frames;
mod messages;
mod reset;
mod strategies;
mod texts;
