"""Two more domains of the paper as procedural phantoms, fundus photographs and skin lesions, and what knows them."""
