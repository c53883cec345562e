"""Orders: what one is (`model`), what it may be (`rules`), what happens to it (`commands`), what
becomes of a doubtful one (`reconcile`) — all pure — then its tables (`store`) and its way in
(`flow`)."""
