//! Layers in, a tree out: attacks, rules, a model, other programs as a measure, and layers that are large.

mod builder;
mod image;
mod rules;
mod texts;
