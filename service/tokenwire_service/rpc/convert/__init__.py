"""Between the contract's messages and the service's own values. Requests are checked here, field by field."""
