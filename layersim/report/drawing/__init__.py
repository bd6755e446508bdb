"""What all figures are drawn with: the sheet and its look, curves over layers, matrices, legends."""
