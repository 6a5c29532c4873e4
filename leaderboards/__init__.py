"""From runs to a page that people trust: statistics, site, submissions."""
