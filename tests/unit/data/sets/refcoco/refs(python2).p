(lp1
(dp2
S'ann_id'
p3
I100
sS'split'
p4
S'train'
p5
sS'ref_id'
L7L
sS'sentences'
(lp6
(dp7
S'sent'
S'the caf\xc3\xa9\'s "cup"\ttab'
sa(dp8
S"raw"
Vgr\u00f6\u00dfer é
sasa.