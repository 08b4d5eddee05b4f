"""A prediction table or labelled radiographs -> the evidence that a reviewer asks for. No torch."""
