"""Templates, style sheets and escaping for all HTML pages: reports, mining audits, the demo and the server's search page."""
