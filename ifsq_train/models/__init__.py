"""Networks in plain torch: no engine, no launcher, no configuration library."""
