"""What leaves the page: report, files, command lines; which experiment has which button and drawing."""
