"""The verbs: what a user does with a study. One verb, one file, one public function; the command line calls them."""
