//! Layers in, a tree out: known attacks, the rules, a model that any layers are compared with, layers of very many entries,
//! and archives of other programs.

mod attacks;
mod builder;
mod image;
mod large;
mod model;
mod rules;
mod texts;
mod tools;
