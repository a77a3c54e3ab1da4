"""The HTML pages of every room: one set of templates, styles and escaping. Reports, mining audits, the demo and the server use it."""
