//! ID tokens: what is validated, with keys made on the spot.
