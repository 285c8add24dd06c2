//! Layers in, a tree out: known attacks, the rules, and a model that any layers are compared with.

mod attacks;
mod builder;
mod image;
mod model;
mod rules;
mod texts;
