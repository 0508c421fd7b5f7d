"""Model families behind one seam: what every analysis may rely on, and who fulfils it."""
